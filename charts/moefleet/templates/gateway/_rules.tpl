{{/* The gateway lives without the operator: it watches fleets and their pods itself, and writes nothing. */}}
{{- define "moefleet.gatewayFleetRules" -}}
- apiGroups: [moefleet.io]
  resources: [moefleets]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- end -}}
