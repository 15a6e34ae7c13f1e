"""x"""
def task(config): print("TASK", config)
class Launch:
    def __init__(self, *, nproc: int | None): ...
