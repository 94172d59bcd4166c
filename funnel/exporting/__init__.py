"""What an index holds, written so that it can be read without funnel: .npy, .parquet, or a plain FAISS index."""

from funnel.exporting.export import Exported, export_index

__all__ = ["Exported", "export_index"]
