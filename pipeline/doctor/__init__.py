"""The doctor: looks at everything that a run needs, here and on servers, within a limit of time, and says what to do."""
