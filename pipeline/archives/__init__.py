"""Readers of archives and folders, shared by the sources: limits on sizes and names, checksums, byte ranges."""
