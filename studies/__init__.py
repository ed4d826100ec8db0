"""Questions asked of the network: a folder for each, with its variants, what was measured, and the verdict"""
