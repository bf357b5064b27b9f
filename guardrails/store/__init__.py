"""Versions and backups of the model, and every change of ``current_model/``."""
