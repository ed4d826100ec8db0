"""The pages, and the programs that make what stands on them: `conf.py` is Sphinx's."""
