"""From a fleet's spec to the manifests of its children, as pure functions: pod, Service, PDB, revision, credential.

What comes out is plain JSON as the API server takes it. A spec that cannot be rendered gives a `Problem` with a reason of
the API and a sentence that says what to do; nothing is raised for what a user may write.
Not here: how many pods, which slot, when (planning). Decision 0001 is the contract of the pod.
"""
