"""The pages, and the programs that write what stands on them: `conf.py` is Sphinx's."""
