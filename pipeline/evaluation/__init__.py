"""Measurements of a trained network beside its error rates: nearest pictures, and the tables that hold features and answers."""
