"""Advice on how to train on a dataset: statistics, samplers, a recipe, a page and a picture."""

from .advice_page import write_advice
from .recommendation import Advice, advise
