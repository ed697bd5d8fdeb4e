"""How far an engine has drifted from its FP32 reference, and whether that is too far."""
