"""Runs beside each other: what differs, errors with intervals, paired differences, curves. Only `before` decides bytes"""
