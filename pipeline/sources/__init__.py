"""One module for each place pictures come from: its archives come to the store, and what they hold is listed."""
