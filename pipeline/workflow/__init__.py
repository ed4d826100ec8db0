"""Running the workflow as a whole: what will run and how long it took, here or, with changes, as an experiment in a copy."""
