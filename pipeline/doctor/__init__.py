"""What a run needs, looked at before it runs: the check before each stage, and the doctor, who asks the servers, too."""
