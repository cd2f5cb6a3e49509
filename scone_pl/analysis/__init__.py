"""Which decoder layer should the bridge read? Both experts' similarities with the instruction, layer by layer."""
