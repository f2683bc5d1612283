{{/* The gateway lives without the operator: it watches fleets and their pods itself, and writes nothing. */}}
{{- define "moefleet.gatewayFleetRules" -}}
- apiGroups: [moefleet.io]
  resources: [moefleets]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- end -}}
