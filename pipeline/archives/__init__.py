"""What the sources share: archives, folders and lists, read within limits and fetched by checksum."""
