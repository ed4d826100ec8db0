"""Runs beside each other: differing parameters, errors with intervals, paired differences, curves. Decides no byte of an out"""
