"""The trained network in use: from the bytes of pictures to answers. What is here changes no out of a stage."""
