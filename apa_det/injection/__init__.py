from .surgery import inject, injected, restore

__all__ = ["inject", "injected", "restore"]
