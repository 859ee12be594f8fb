"""The model: backbone, LoRA adapters as one vector, subspaces, forget lock, ranks of embeddings."""
