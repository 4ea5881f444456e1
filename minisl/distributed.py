"""temporary"""


class Alone:
    rank, size, local_rank, local_size = 0, 1, 0, 1

    def total(self, *numbers):
        return [float(n) for n in numbers]

    def broadcast(self, value):
        return value

    def gather(self, value):
        return [value]

    def barrier(self):
        pass

    def exchange(self, named_parameters, shard=False):
        return Nothing()


class Nothing:
    bytes = 0

    def arm(self):
        pass

    finish = share_weights = arm

    def gather_state(self, state):
        return state
