"""Small Mixture-of-Experts models: training, evaluation and files for SGLang."""
