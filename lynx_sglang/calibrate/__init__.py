"""``lynx-sglang calibrate`` measures a model and writes its calibration file."""
