"""Embedders: texts to unit vectors. A setting chooses the embedder; its id is part of every manifest's id."""
