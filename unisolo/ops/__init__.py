"""Operations on masks: Matrix NMS, selection of instances, resizing, packing, panoptic merge.

Everything here is plain torch on the device of its inputs, of fixed shape, and never waits for the
device: no value of a tensor decides which Python line runs next.
"""
