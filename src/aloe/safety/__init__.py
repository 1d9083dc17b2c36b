"""Safety: attack styles, preference pairs from them, the red team and the risk register."""
