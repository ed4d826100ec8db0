"""Machine, processes, files and messages. Nothing here decides a byte of a result or imports another folder of pipeline/."""
