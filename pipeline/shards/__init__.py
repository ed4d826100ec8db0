"""What stands between the stages: the schemas, the shards and where they lie, batches, the census."""
