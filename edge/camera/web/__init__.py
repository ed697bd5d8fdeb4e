"""What the page is served by: who may look, what viewers get, the addresses, the server. Its door: `edge.camera.dashboard`."""
