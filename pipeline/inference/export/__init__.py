"""The trained network for other programs: ONNX, torch.export, safetensors, torchvision; checked before it is written."""
