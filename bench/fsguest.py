def measure(*a): pass
def show(*a): pass
