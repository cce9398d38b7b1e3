"""Training: one loop, a trainer per model, joint fine-tuning, calibration."""
