{{/* What all pods of the chart have in common. */}}

{{/* The usual "nonroot"; the images' files are readable by everybody. */}}
{{- define "moefleet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "moefleet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* dict "root" $ "component" "operator" "values" .Values.operator */}}
{{- define "moefleet.scheduling" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .values.topologySpread }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "moefleet.selectorLabels" (dict "root" $.root "component" $.component) | nindent 8 }}
    # Pods of an older revision do not count, or an upgrade would pile up on one node.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{/* The control key as a file; the operator and the picker read it. */}}
{{- define "moefleet.controlKeyVolume" -}}
- name: control-key
  secret:
    secretName: {{ include "moefleet.controlKeySecret" . }}
    defaultMode: 0440
    items:
      - key: key
        path: key
{{- end -}}
