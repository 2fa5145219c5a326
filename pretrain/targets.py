"""What every image should find among the texts of a batch, tile by tile: targets that follow labels are too many pairs
for lists (pretrain.pairs), as a label of two classes makes half of all pairs positive.

A column is a text of a study: a text that two studies have is two columns, as in CLIP (arXiv 2103.00020) and UniCL
(arXiv 2204.03610), where a batch is triples of image, text and label. Three rules hold for every kind of target: an
image's own texts are positive, so are equal texts of other studies, and texts of other studies of its patient are no
negatives.

Legend: N studies (rows), M texts of studies (columns), L labels, R, C sides of a tile, U distinct texts in a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Targets:
    """Weights of pairs, of which a row's (a column's) share of their sum is its target.

    Args:
        study_M, text_M: the study and the text of each column.
        patient_N: any identity.

    Columns are sorted by study; `text_M` says the text of each in this order.
    """

    def __init__(self, study_M: Tensor, text_M: Tensor, patient_N: Tensor) -> None:
        self.study_M, order = torch.sort(study_M, stable=True)
        self.text_M = text_M[order]
        self.patient_N = patient_N
        ends = torch.searchsorted(self.study_M, torch.arange(len(patient_N) + 1, device=study_M.device))
        self._first_N1: list[int] = ends.tolist()

    def tile(self, rows: slice, columns: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weights [R, C] and which pairs are neither positive nor negative (bool); those weigh 0."""
        raise NotImplementedError

    def dense(self) -> tuple[Tensor, Tensor]:
        """All weights [N, M], and which pairs are negatives: of weight below a row's own texts', and counted."""
        every = slice(0, len(self.patient_N)), slice(0, len(self.study_M))
        weight, neither = self.tile(*every, torch.float64)
        return weight, ~neither & (weight < weight.amax(1, keepdim=True))

    def _same_text(self, rows: slice, columns: slice) -> Tensor:
        """Whether the text of a column is one of the row's own."""
        texts_U, place_C = torch.unique(self.text_M[columns], return_inverse=True)
        own = slice(self._first_N1[rows.start], self._first_N1[rows.stop])
        text, study = self.text_M[own], self.study_M[own] - rows.start
        place = torch.searchsorted(texts_U, text).clamp(max=len(texts_U) - 1)
        has_RU = torch.zeros(rows.stop - rows.start, len(texts_U), dtype=torch.bool, device=text.device)
        there = texts_U[place] == text
        has_RU[study[there], place[there]] = True
        return has_RU[:, place_C]

    def _same(self, of_N: Tensor, rows: slice, columns: slice) -> Tensor:
        return of_N[rows, None] == of_N[self.study_M[columns]]


class ClassTargets(Targets):
    """Texts of studies of the same class are positive, each as much as the own one (UniCL, eq. 3 and 4), or with
    `masked` neither positive nor negative.

    Args:
        class_N: any identity, 0 where a study has no class.
    """

    def __init__(
        self, study_M: Tensor, text_M: Tensor, patient_N: Tensor, class_N: Tensor, masked: bool = False
    ) -> None:
        super().__init__(study_M, text_M, patient_N)
        self.class_N, self.masked = class_N, masked

    def tile(self, rows: slice, columns: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        positive, related = self._same_text(rows, columns), self._same(self.patient_N, rows, columns)
        kin = self._same(self.class_N, rows, columns) & (self.class_N[rows] != 0)[:, None]
        if self.masked:
            related |= kin
        else:
            positive |= kin
        return positive.to(dtype), related & ~positive


class LabelTargets(Targets):
    """Texts count by how alike the labels of the studies are: e^{(s - 1) / temperature}, whose share of its sum is the
    softmax of similarities that MedCLIP (arXiv 2210.10163, eq. 3 to 5) takes, with temperature 1.

    The similarity s is the cosine of the labels that are present, among those known of both studies: 1 where both are
    known to have none of them, 0 where nothing is known of both. Equal texts have s = 1 whatever the labels are. The
    row of an image without a known label and without a text says nothing, and weighs 0.

    Args:
        labels_NL: 1, 0, NaN where unknown.
    """

    def __init__(
        self, study_M: Tensor, text_M: Tensor, patient_N: Tensor, labels_NL: Tensor, temperature: float
    ) -> None:
        super().__init__(study_M, text_M, patient_N)
        self.present_NL = (labels_NL == 1).float()
        self.known_NL = (~labels_NL.isnan()).float()
        self.temperature = temperature
        told_N = torch.bincount(study_M, minlength=len(patient_N)) > 0
        self.speaks_N = told_N | (self.known_NL.sum(1) > 0)

    def tile(self, rows: slice, columns: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        same = self._same_text(rows, columns)
        alike = self._similarity(rows, self.study_M[columns]).to(dtype).masked_fill_(same, 1.0)
        neither = self._same(self.patient_N, rows, columns) & ~same
        weight = alike.sub_(1.0).div_(self.temperature).exp_().masked_fill_(neither, 0.0)
        return weight * self.speaks_N[rows, None], neither

    def _similarity(self, rows: slice, study_C: Tensor) -> Tensor:
        p_R, k_R, p_C, k_C = (
            self.present_NL[rows],
            self.known_NL[rows],
            self.present_NL[study_C],
            self.known_NL[study_C],
        )
        both, of_row, of_column = p_R @ p_C.T, p_R @ k_C.T, k_R @ p_C.T
        none = (of_row + of_column == 0) & (k_R @ k_C.T > 0)
        return (both * (of_row * of_column).clamp(min=1.0).rsqrt()).masked_fill_(none, 1.0)


def class_of(labels_NL: Tensor) -> Tensor:
    """A number from 1 on for each distinct row of labels (what is unknown has to be unknown in both), 0 for rows of
    which nothing is known."""
    told_NL = labels_NL.nan_to_num(2.0).to(torch.int8)
    class_N = torch.unique(told_NL, dim=0, return_inverse=True)[1] + 1
    return class_N * (told_NL != 2).any(1)
