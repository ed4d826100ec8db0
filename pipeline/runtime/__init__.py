"""Where, when and by whom the work is done; no byte is decided here, and no other room is known."""
