{{/* What the operator may do where fleets are. */}}
{{- define "moefleet.operatorFleetRules" -}}
- apiGroups: [moefleet.io]
  resources: [moefleets]
  verbs: [list, watch]
- apiGroups: [moefleet.io]
  resources: [moefleets/status]
  verbs: [patch]
- apiGroups: [moefleet.io]
  resources: [moefleets/finalizers]
  # No finalizer is set: clusters that check owner references ask for this before a child may block its owner's deletion.
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [services]
  # Deleted by the garbage collector, with their fleet.
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]
  resources: [controllerrevisions]
  # A fleet's revisions and how each went; the oldest are deleted.
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [resourcequotas]
  # Room that the nodes have and the namespace may not use.
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  # What scaling has learnt of a fleet, read and written by its name.
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}
