"""One module an algorithm: how it is planned, and where it is the first of its kind, how it runs.
`gemm.family` names them.
"""
