"""What passes between the stages: the Parquet schemas, the locations of shards and mean, batches, the census."""
