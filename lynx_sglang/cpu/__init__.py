"""SGLang without an accelerator: the platform, its operators, and the runtime on it."""
