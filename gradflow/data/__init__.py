"""Data sets and the loader that cuts them into batches."""

from gradflow.data import datasets
from gradflow.data.dataset import Dataset, TensorDataset
from gradflow.data.loader import DataLoader

__all__ = ["DataLoader", "Dataset", "TensorDataset", "datasets"]
