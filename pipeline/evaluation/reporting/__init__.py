"""The report's parts: figures, tables, the run's record, where its time went, what differs from recipe and paper."""
