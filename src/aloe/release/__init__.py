"""Release: a model folder with cards, evidence, licences and carbon, and the verifier of any artifact."""
