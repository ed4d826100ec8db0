"""The runs in MLflow. Nothing here changes a result. Of pipeline/ it imports runtime/ alone."""
