"""What is measured of a trained network beside its errors: neighbours, and the tables that hold them."""
