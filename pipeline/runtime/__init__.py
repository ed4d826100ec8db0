"""Machine, processes, files and messages. Nothing here changes a result, or imports another folder of pipeline/."""
