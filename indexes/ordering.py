"""The order in which rows are stored: along a tree of clusters, so that near rows lie near each other.

A graph built over rows in this order is about 15 % faster at the same recall, because a walk stays within a
few cache lines and pages (measured on 300,000 rows).
"""

from dataclasses import dataclass, field

import numpy as np

from indexes.base import Float32Array, Int64Array
from indexes.errors import CoarseIndexError

BRANCH = 16  # children a node: four levels order 65,536 leaves
CLUSTERING_ROUNDS = 4  # the order needs no more: later rounds move few rows
CLUSTERING_ROWS_PER_CHILD = 256  # FAISS's default for k-means
CLUSTERED_DIMS = 32  # of a prefix sorted by importance; they tell clusters apart, at a quarter of the cost
LEAF_SIZE = 64  # sample rows a leaf: about one page of a float16 matrix of some hundred dimensions

MAX_DEPTH = 32  # real rows need 4 to 6; rows that k-means peels off one by one must not recurse for ever


@dataclass
class _Node:
    """An inner node: its children's centroids float32 [c, dims] and, for each, a node or a leaf number.

    The children are ordered along `axis`, on which their centroids differ most.
    """

    centroids: Float32Array
    axis: Float32Array
    children: list["_Node | int"] = field(default_factory=list)

    def parts(self, rows: Float32Array) -> list[Int64Array]:
        """Positions of the rows nearest to each centroid, rising."""
        labels = _nearest(rows, self.centroids)
        bounds = np.cumsum(np.bincount(labels, minlength=len(self.centroids)))[:-1]
        return list(np.split(np.argsort(labels, kind="stable"), bounds))


class ClusterTree:
    """Hierarchical k-means, its leaves numbered from left to right. Made by `fit`."""

    def __init__(self, dim: int, leaf_size: int, seed: int) -> None:
        self.dim, self._leaf_size, self._seed = dim, leaf_size, seed
        self.leaves = 0
        self._root: _Node | int = 0

    @classmethod
    def fit(cls, sample: Float32Array, leaf_size: int = LEAF_SIZE, seed: int = 0) -> "ClusterTree":
        """Build the tree from a sample: float32 [s, m].

        Nodes of more than `leaf_size` sample rows are split by k-means. Rows that no split can tell apart
        stay in one leaf.

        Raises:
            CoarseIndexError: The sample is not a matrix with rows, or `leaf_size` is below 1.
        """
        if sample.ndim != 2 or not sample.size:
            raise CoarseIndexError(f"a sample of shape {list(sample.shape)}; give [s, m] with s >= 1, m >= 1")
        if leaf_size < 1:
            raise CoarseIndexError(f"leaf_size is {leaf_size}; give at least 1")
        tree, rows = cls(sample.shape[1], leaf_size, seed), _clustered(sample)
        tree._root = tree._split(rows, np.ones(rows.shape[1], np.float32), MAX_DEPTH)
        return tree

    def assign(self, prefixes: Float32Array) -> Int64Array:
        """The leaf of each row: float32 [n, m] to int64 [n]. Leaves with near numbers are near.

        Raises:
            CoarseIndexError: The rows are not as wide as the sample.
        """
        if prefixes.ndim != 2 or prefixes.shape[1] != self.dim:
            raise CoarseIndexError(f"rows of shape {list(prefixes.shape)}; this tree takes [n, {self.dim}]")
        rows = _clustered(prefixes)
        leaves = np.empty(len(rows), np.int64)
        waiting: list[tuple[_Node | int, Int64Array]] = [(self._root, np.arange(len(rows)))]
        while waiting:
            node, members = waiting.pop()
            if isinstance(node, int):
                leaves[members] = node
            else:
                pairs = zip(node.children, node.parts(rows[members]), strict=True)
                waiting.extend((child, members[part]) for child, part in pairs if len(part))
        return leaves

    def _split(self, rows: Float32Array, towards: Float32Array, depth: int) -> _Node | int:
        node = self._node(rows, towards) if depth and len(rows) > self._leaf_size else None
        if node is None:
            self.leaves += 1
            return self.leaves - 1
        node.children = [self._split(rows[part], node.axis, depth - 1) for part in node.parts(rows)]
        return node

    def _node(self, rows: Float32Array, towards: Float32Array) -> _Node | None:
        centroids = _centroids(rows, min(BRANCH, -(-len(rows) // self._leaf_size)), self._seed)
        centroids = centroids[np.unique(_nearest(rows, centroids))]
        if len(centroids) < 2:  # a split that leaves all rows together would be repeated for ever
            return None
        centred = centroids - centroids.mean(axis=0)
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        # The way the parent runs: the last leaf of one child then lies near the first of the next.
        axis = -axis if axis @ towards < 0 else axis
        return _Node(centroids[np.argsort(centred @ axis, kind="stable")], axis)


def _clustered(prefixes: Float32Array) -> Float32Array:
    return np.ascontiguousarray(prefixes[:, :CLUSTERED_DIMS], dtype=np.float32)


def _centroids(rows: Float32Array, count: int, seed: int) -> Float32Array:
    """Lloyd's k-means on a sample. FAISS's would spend its time starting threads: most nodes are small."""
    drawn = min(len(rows), count * CLUSTERING_ROWS_PER_CHILD)
    sample = rows[np.random.default_rng(seed).choice(len(rows), drawn, replace=False)]
    centroids = sample[:count]
    for _ in range(CLUSTERING_ROUNDS):
        labels = _nearest(sample, centroids)
        members = np.zeros((count, len(sample)), np.float32)
        members[labels, np.arange(len(sample))] = 1
        sizes = members.sum(axis=1, keepdims=True)
        centroids = np.where(sizes > 0, members @ sample / np.maximum(sizes, 1), centroids)
    return centroids


def _nearest(rows: Float32Array, centroids: Float32Array) -> Int64Array:
    half_norms = np.einsum("ij,ij->i", centroids, centroids) / 2
    return np.asarray((rows @ centroids.T - half_norms).argmax(axis=1))


def stored_order(leaves: Int64Array, block_rows: int, seed: int = 0) -> Int64Array:
    """The order to store rows in: int64 [n] leaf numbers to int64 [n] row numbers.

    Rows are dealt at random into ceil(n / block_rows) blocks of nearly equal size, and follow their leaves
    within a block. So each block of a graph built block by block spans the whole space, while neighbours in
    a block still lie together. Up to `block_rows` rows make one block.

    Raises:
        CoarseIndexError: `block_rows` is below 1.
    """
    if block_rows < 1:
        raise CoarseIndexError(f"block_rows is {block_rows}; give at least 1")
    count = max(1, -(-len(leaves) // block_rows))
    if count == 1:
        return np.argsort(leaves, kind="stable")
    dealt = np.array_split(np.random.default_rng(seed).permutation(len(leaves)), count)
    blocks = (np.sort(block) for block in dealt)
    return np.concatenate([block[np.argsort(leaves[block], kind="stable")] for block in blocks])
