"""What a prefix of an encoding's name says of the rows in a packet.

`padding`: which are tokens. `parts`: which rows of a larger tensor they are. Both are read by decoders around
that of the rows themselves (`contracts.chain`). `leading`: a tensor's leading dimensions in the header.
"""
