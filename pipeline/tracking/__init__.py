"""The runs in MLflow. Nothing here decides a byte of a result or imports another folder of pipeline/ than runtime/."""
