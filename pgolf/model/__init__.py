"""The parts of a GPT, the LayerPlan that orders them, and the sites where adapters attach."""
