"""Studies of the network: a folder for each question, with the variants, the measurements and the verdict"""
