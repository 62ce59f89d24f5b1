"""Training of EPIC encoders: data, losses, the loop. Uses the same prompt code as inference."""
